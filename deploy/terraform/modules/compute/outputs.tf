output "repository_url" {
  description = "Where to push the image."
  value       = aws_ecr_repository.platform.repository_url
}

output "cluster_name" {
  description = "The ECS cluster."
  value       = aws_ecs_cluster.platform.name
}

output "raw_store" {
  description = "The raw store, as the platform is told."
  value       = var.raw_store
}

output "evidence_anchor" {
  description = "Where checkpoints lie, as the platform is told."
  value       = var.evidence_anchor
}
