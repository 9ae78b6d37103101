#!/usr/bin/env bash
# Write docker/.env and docker/mlflow-auth.ini with fresh passwords, once. Neither is committed.
set -euo pipefail
cd "$(dirname "$0")"
if [ -e .env ]; then
  echo "docker/.env is there already; remove it to make new passwords." >&2
  exit 1
fi
umask 077
secret() { python3 -c 'import secrets; print(secrets.token_urlsafe(24))'; }
mlflow_password=$(secret)
cat > .env <<ENV
POSTGRES_PASSWORD=$(secret)
PREFECT_AUTH=admin:$(secret)
MLFLOW_SECRET=$(secret)
MLFLOW_PASSWORD=$mlflow_password
ENV
cat > mlflow-auth.ini <<INI
[mlflow]
default_permission = READ
database_uri = sqlite:////tmp/mlflow-auth.db
admin_username = admin
admin_password = $mlflow_password
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
chmod 644 mlflow-auth.ini
echo "wrote docker/.env and docker/mlflow-auth.ini; sign in as admin with the passwords in .env"
