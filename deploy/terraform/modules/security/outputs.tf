output "key_arns" {
  description = "Keys by what they are for: data, secrets, logs."
  value       = { for use, key in aws_kms_key.platform : use => key.arn }
}

output "bucket_arns" {
  description = "Buckets by what they are for."
  value       = local.bucket_arn
}

output "role_arns" {
  description = "Roles: control, execution."
  value = {
    control   = aws_iam_role.control.arn
    execution = aws_iam_role.execution.arn
  }
}

output "stage_role_arns" {
  description = "Roles of stages by backend and stage: lambda-publish."
  value       = { for name, role in aws_iam_role.stage : name => role.arn }
}

output "flow_log_role_arn" {
  description = "Role that writes flow logs."
  value       = aws_iam_role.flow_logs.arn
}

output "database_monitoring_role_arn" {
  description = "Role that writes RDS's measurements."
  value       = aws_iam_role.monitoring.arn
}

output "database_secret_arn" {
  description = "Secret that is the database's URL."
  value       = aws_secretsmanager_secret.database_url.arn
}

output "database_secret_id" {
  description = "Id of the secret that is the database's URL."
  value       = aws_secretsmanager_secret.database_url.id
}
