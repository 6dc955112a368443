-- Which builds may work with the schema: an older one may, as long as it knows what the newer migrations ask for.

CREATE TABLE schema_compatibility (
    version bigint PRIMARY KEY,
    needs   bigint NOT NULL
);

COMMENT ON TABLE schema_compatibility IS
    'a row for each migration from 4 on; without a row, a migration needs a build that knows it';
COMMENT ON COLUMN schema_compatibility.needs IS
    'the last migration that a build must know to work with this one applied: the same number where older builds would fail';

INSERT INTO schema_compatibility (version, needs) VALUES (4, 2);
