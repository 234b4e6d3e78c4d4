# Production: a standby in another zone, a way out per zone, and nothing that matters can be destroyed in passing.
# account_id, owner, alarm_emails and image come from the command line or the environment (TF_VAR_image).
environment = "prod"
cidr        = "10.30.0.0/16"
protected   = true

nat_gateways = 2

raw_lock_days             = 365
evidence_lock_days        = 2555 # seven years
raw_infrequent_after_days = 60
log_retention_days        = 400

database = {
  engine_version   = "18"
  instance_class   = "db.m7g.xlarge"
  storage_gb       = 400
  storage_limit_gb = 4000
  multi_az         = true
  backup_days      = 35
  max_connections  = 500
}

code_location   = { cpu = 2048, memory_mb = 16384 }
concurrent_runs = 16
