output "repository_url" {
  description = "Where to push the image."
  value       = module.compute.repository_url
}

output "cluster" {
  description = "The ECS cluster."
  value       = module.compute.cluster_name
}

output "raw_store" {
  description = "The raw store."
  value       = module.compute.raw_store
}

output "evidence_anchor" {
  description = "Where checkpoints of evidence lie."
  value       = module.compute.evidence_anchor
}

output "runs_bucket" {
  description = "Where runs and runners talk, and what Glue runs lies below code/."
  value       = module.storage.bucket_ids["runs"]
}

output "database_endpoint" {
  description = "PostgreSQL, reachable from inside the VPC."
  value       = module.database.endpoint
}

output "database_secret_arn" {
  description = "The secret that is the database's URL."
  value       = module.security.database_secret_arn
}

output "stage_role_arns" {
  description = "Roles of stages by backend and stage."
  value       = module.security.stage_role_arns
}

output "alarm_topic_arn" {
  description = "Where alarms go."
  value       = module.observability.alarm_topic_arn
}

output "dashboard" {
  description = "Name of the CloudWatch dashboard."
  value       = module.observability.dashboard_name
}

output "egress_addresses" {
  description = "Addresses that the internet sees of services and of runners on public_vpc_egress."
  value       = module.network.egress_addresses
}
