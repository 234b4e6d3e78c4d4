output "log_group_names" {
  description = "Log groups by what they are for: services, stages, sessions."
  value       = { for use, group in aws_cloudwatch_log_group.platform : use => group.name }
}

output "flow_log_group_arn" {
  description = "Log group of the VPC's flow logs."
  value       = aws_cloudwatch_log_group.platform["network"].arn
}

output "alarm_topic_arn" {
  description = "Where alarms go."
  value       = aws_sns_topic.alarms.arn
}

output "dashboard_name" {
  description = "The dashboard."
  value       = aws_cloudwatch_dashboard.platform.dashboard_name
}
