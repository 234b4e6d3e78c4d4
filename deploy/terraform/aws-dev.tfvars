# Development: one zone's failure stops it, and `terraform destroy` removes all of it but locked objects.
# account_id, owner and image come from the command line or the environment (TF_VAR_image).
environment = "dev"
cidr        = "10.20.0.0/16"
protected   = false

nat_gateways = 1

raw_lock_days      = 1
evidence_lock_days = 1
log_retention_days = 30

database = {
  engine_version   = "18"
  instance_class   = "db.t4g.medium"
  storage_gb       = 50
  storage_limit_gb = 200
  multi_az         = false
  backup_days      = 3
  max_connections  = 200
}
