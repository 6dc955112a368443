-- When an operator said that a partition may go on.

ALTER TABLE progress ADD COLUMN resumed_at timestamptz;

COMMENT ON COLUMN progress.resumed_at IS
    'written by `msg-transfer resume`: dead letters first seen until then do not count against the partition any more';
