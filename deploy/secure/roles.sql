-- Roles with the rights in docs/rights.md. `migrate` owns the tables and creates them later, so the rights are given in
-- advance. The transfer could do with less: it updates only `progress`.
\set gateway_password `cat /run/secrets/postgres-password-gateway`
\set transfer_password `cat /run/secrets/postgres-password-transfer`
CREATE ROLE gateway LOGIN PASSWORD :'gateway_password';
CREATE ROLE transfer LOGIN PASSWORD :'transfer_password';
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO gateway, transfer;
ALTER DEFAULT PRIVILEGES GRANT INSERT, UPDATE ON TABLES TO transfer;
