# BareCount on AWS. Names come from deploy/environments/aws-<environment>.yaml, sizes from
# contracts/platform/runner_sizes.yaml: the files that the platform itself reads. docs/deploy.md says how to use this.

locals {
  # The payload's entry points beside `python -m barecount_assets.stages`.
  function_handler = "barecount_assets.stages.on_lambda.handler"
  glue_script      = "${path.root}/../glue_stage.py"
}

module "declared" {
  source      = "./modules/declared"
  environment = var.environment
}

module "security" {
  source                = "./modules/security"
  name                  = module.declared.name
  region                = module.declared.region
  account_id            = var.account_id
  stages                = module.declared.stages
  bucket_names          = module.declared.bucket_names
  messages_prefix       = module.declared.messages_prefix
  source_bucket_arns    = var.source_bucket_arns
  cluster_name          = module.declared.cluster
  task_definition_name  = module.declared.task_definition
  function_name         = module.declared.function
  glue_job_name         = module.declared.glue_job
  key_deletion_days     = var.protected ? 30 : 7
  secret_recovery_days  = var.protected ? 30 : 0
  repository_name       = module.declared.name
  database_secret_name  = "${module.declared.name}/database-url"
  tenant_secrets_prefix = "${module.declared.name}/tenants/"
  agent_queues          = module.declared.agent_queues
}

module "observability" {
  source                   = "./modules/observability"
  name                     = module.declared.name
  region                   = module.declared.region
  logs_key_arn             = module.security.key_arns["logs"]
  retention_days           = var.log_retention_days
  alarm_emails             = var.alarm_emails
  services                 = local.services
  cluster_name             = module.declared.cluster
  function_names           = keys(module.declared.functions)
  glue_job_names           = keys(module.declared.glue_jobs)
  database_identifier      = module.declared.name
  database_free_bytes_min  = var.database.storage_gb * 1024 * 1024 * 1024 / 10
  database_connections_max = var.database.max_connections
}

module "network" {
  source               = "./modules/network"
  name                 = module.declared.name
  region               = module.declared.region
  cidr                 = var.cidr
  zones                = var.zones
  subnets              = module.declared.subnets
  security_groups      = module.declared.security_groups
  endpoint_services    = module.declared.endpoint_services
  nat_gateways         = var.nat_gateways
  vpn                  = var.vpn
  private_source_cidrs = var.private_source_cidrs
  privatelink_services = var.privatelink_services
  allowed_bucket_arns  = concat(values(module.security.bucket_arns), var.source_bucket_arns)
  flow_log_group_arn   = module.observability.flow_log_group_arn
  flow_log_role_arn    = module.security.flow_log_role_arn
}

module "storage" {
  source                  = "./modules/storage"
  name                    = module.declared.name
  bucket_names            = module.declared.bucket_names
  messages_prefix         = module.declared.messages_prefix
  data_key_arn            = module.security.key_arns["data"]
  raw_lock_days           = var.raw_lock_days
  evidence_lock_days      = var.evidence_lock_days
  raw_infrequent_after    = var.raw_infrequent_after_days
  messages_kept_days      = var.messages_kept_days
  protected               = var.protected
  services_subnet_ids     = module.network.services_subnet_ids
  data_security_group_ids = [module.network.file_system_security_group_id]
}

module "database" {
  source              = "./modules/database"
  name                = module.declared.name
  subnet_ids          = module.network.data_subnet_ids
  security_group_ids  = [module.network.database_security_group_id]
  data_key_arn        = module.security.key_arns["data"]
  secret_id           = module.security.database_secret_id
  monitoring_role_arn = module.security.database_monitoring_role_arn
  settings            = var.database
  password_version    = var.database_password_version
  protected           = var.protected
}

module "compute" {
  source                      = "./modules/compute"
  name                        = module.declared.name
  environment_name            = module.declared.environment_name
  region                      = module.declared.region
  image                       = var.image
  cluster_name                = module.declared.cluster
  task_definition_name        = module.declared.task_definition
  container_name              = module.declared.container
  functions                   = module.declared.functions
  glue_jobs                   = module.declared.glue_jobs
  glue_networks               = module.declared.glue_networks
  glue_size                   = module.declared.glue_size
  launch_template_name        = module.declared.launch_template
  instance_type               = module.declared.instance_type
  services                    = local.services
  concurrent_runs             = var.concurrent_runs
  raw_store                   = "s3://${module.storage.bucket_ids["raw"]}/raw"
  evidence_anchor             = "s3://${module.storage.bucket_ids["evidence"]}/checkpoints"
  runs_bucket                 = module.storage.bucket_ids["runs"]
  database_secret_arn         = module.security.database_secret_arn
  tenant_secrets_prefix       = "${module.declared.name}/tenants/"
  role_arns                   = module.security.role_arns
  stage_role_arns             = module.security.stage_role_arns
  data_key_arn                = module.security.key_arns["data"]
  logs_key_arn                = module.security.key_arns["logs"]
  log_group_names             = module.observability.log_group_names
  vpc_id                      = module.network.vpc_id
  services_subnet_ids         = module.network.services_subnet_ids
  services_security_group_id  = module.network.services_security_group_id
  subnet_ids                  = module.network.subnet_ids
  security_group_ids          = module.network.security_group_ids
  subnet_zones                = module.network.subnet_zones
  file_system_id              = module.storage.file_system_id
  file_system_access_point_id = module.storage.file_system_access_point_id
  protected                   = var.protected
  function_handler            = local.function_handler
  glue_script                 = local.glue_script
  instance_longest_minutes    = 780
}
