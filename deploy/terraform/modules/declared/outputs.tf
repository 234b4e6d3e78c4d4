output "name" {
  description = "What names of this environment begin with: the cluster's name."
  value       = local.spec.classes.container.cluster
}

output "environment_name" {
  description = "Name of the environment as the platform knows it (BARECOUNT_ENVIRONMENT)."
  value       = local.declared.metadata.name
}

output "region" {
  description = "AWS region."
  value       = local.spec.region
}

output "tags" {
  description = "Tags of every resource."
  value       = local.spec.tags
}

output "stages" {
  description = "Stages that runners execute, as in role names."
  value       = local.stages
}

output "bucket_names" {
  description = "Names of buckets by what they are for."
  value = {
    runs     = local.messages.bucket
    raw      = "${local.bucket_prefix}-raw"
    evidence = "${local.bucket_prefix}-evidence"
    access   = "${local.bucket_prefix}-access-logs"
  }
}

output "messages_prefix" {
  description = "Prefix in the bucket of runs below which a run and its runner talk."
  value       = trimsuffix(local.messages.prefix, "/")
}

output "subnets" {
  description = "Subnets of the network profiles by name: tier (public, private, vpn) and index of the zone."
  value       = local.subnets
}

output "security_groups" {
  description = "Names of security groups by network profile."
  value       = { for profile, network in local.networks : profile => network.security_groups[0] }
}

output "endpoint_services" {
  description = "Services whose private endpoints a profile needs before a run starts: s3, secretsmanager."
  value = distinct(flatten([
    for network in local.networks : [for name in try(network.endpoints, []) : split(".", name)[0]]
  ]))
}

output "functions" {
  description = "Lambda functions by name: stage, memory, timeout, calls at once, subnets and security groups by name."
  value       = local.functions
}

output "function" {
  description = "What names of functions begin with."
  value       = local.spec.classes.serverless.function
}

output "cluster" {
  description = "Name of the ECS cluster."
  value       = local.spec.classes.container.cluster
}

output "task_definition" {
  description = "Family of the task definition of stages."
  value       = local.spec.classes.container.task_definition
}

output "container" {
  description = "Name of the container of a stage's task."
  value       = local.spec.classes.container.container
}

output "glue_job" {
  description = "What names of Glue jobs begin with."
  value       = local.spec.classes.managed_etl.job
}

output "glue_jobs" {
  description = "Glue jobs by name: stage and network profile."
  value       = local.glue_jobs
}

output "glue_networks" {
  description = "Networks of Glue jobs by network profile: subnet and security groups by name."
  value       = local.glue_networks
}

output "glue_size" {
  description = "Medium size of a Glue job: flavor, workers, timeout; a run brings its own."
  value       = local.sizes.glue.medium
}

output "launch_template" {
  description = "Name of the launch template."
  value       = local.spec.classes.dedicated_compute.launch_template
}

output "instance_type" {
  description = "Instance type of the medium size; a run brings its own."
  value       = local.sizes.ec2.medium.flavor
}

output "agent_queues" {
  description = "Names of queues that agents poll, by network profile."
  value = {
    for profile, network in local.spec.networks : profile => network.queue if try(network.queue, null) != null
  }
}
