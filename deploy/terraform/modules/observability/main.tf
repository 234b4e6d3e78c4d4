# Logs, alarms and one dashboard. What the platform itself watches (freshness, quarantine, gates) it tells its owners of;
# here is what only the machines know.

locals {
  groups = toset(["services", "stages", "sessions", "network"])

  function_failures = {
    for name in var.function_names : name => name
  }
}

resource "aws_cloudwatch_log_group" "platform" {
  for_each = local.groups

  name              = "/barecount/${var.name}/${each.value}"
  retention_in_days = var.retention_days
  kms_key_id        = var.logs_key_arn
}

# RDS and Glue make their groups themselves, to be kept for ever, unless these are there before.
resource "aws_cloudwatch_log_group" "database" {
  name              = "/aws/rds/instance/${var.name}/postgresql"
  retention_in_days = var.retention_days
  kms_key_id        = var.logs_key_arn
}

resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = var.logs_key_arn
}

resource "aws_sns_topic_subscription" "alarms" {
  for_each = toset(var.alarm_emails)

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.value
}

resource "aws_cloudwatch_metric_alarm" "service_is_down" {
  for_each = var.services

  alarm_name          = "${var.name}-${each.key}-is-down"
  alarm_description   = "No task of ${each.key} has run for five minutes"
  namespace           = "ECS/ContainerInsights"
  metric_name         = "RunningTaskCount"
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 5
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  treat_missing_data  = "breaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]

  dimensions = {
    ClusterName = var.cluster_name
    ServiceName = each.key
  }
}

resource "aws_cloudwatch_metric_alarm" "database_storage" {
  alarm_name          = "${var.name}-database-storage"
  alarm_description   = "Less than a tenth of the first storage is free, and it grows no more"
  namespace           = "AWS/RDS"
  metric_name         = "FreeStorageSpace"
  statistic           = "Minimum"
  period              = 300
  evaluation_periods  = 3
  comparison_operator = "LessThanThreshold"
  threshold           = var.database_free_bytes_min
  treat_missing_data  = "breaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]

  dimensions = { DBInstanceIdentifier = var.database_identifier }
}

resource "aws_cloudwatch_metric_alarm" "database_connections" {
  alarm_name          = "${var.name}-database-connections"
  alarm_description   = "Nine of ten connections are taken: fewer runs at once, or a larger instance"
  namespace           = "AWS/RDS"
  metric_name         = "DatabaseConnections"
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 5
  comparison_operator = "GreaterThanThreshold"
  threshold           = floor(var.database_connections_max * 0.9)
  alarm_actions       = [aws_sns_topic.alarms.arn]

  dimensions = { DBInstanceIdentifier = var.database_identifier }
}

resource "aws_cloudwatch_metric_alarm" "function_throttled" {
  for_each = local.function_failures

  alarm_name          = "${each.value}-throttled"
  alarm_description   = "Calls were refused for a quarter of an hour: the account's limit of calls at once"
  namespace           = "AWS/Lambda"
  metric_name         = "Throttles"
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 3
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]

  dimensions = { FunctionName = each.value }
}

# A stage's own errors are in its run. A line that is an error in the log of a service is for whoever runs the platform.
resource "aws_cloudwatch_log_metric_filter" "service_errors" {
  name           = "${var.name}-service-errors"
  log_group_name = aws_cloudwatch_log_group.platform["services"].name
  pattern        = "?ERROR ?CRITICAL ?Traceback"

  metric_transformation {
    name          = "ServiceErrors"
    namespace     = "BareCount/${var.name}"
    value         = "1"
    default_value = "0"
  }
}

resource "aws_cloudwatch_metric_alarm" "service_errors" {
  alarm_name          = "${var.name}-service-errors"
  alarm_description   = "More than 20 errors in a quarter of an hour in the services' log"
  namespace           = "BareCount/${var.name}"
  metric_name         = aws_cloudwatch_log_metric_filter.service_errors.metric_transformation[0].name
  statistic           = "Sum"
  period              = 900
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 20
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
}

resource "aws_cloudwatch_dashboard" "platform" {
  dashboard_name = var.name

  dashboard_body = jsonencode({
    widgets = [
      for position, graph in [
        {
          title = "Services: memory (MB)"
          metrics = [for service in keys(var.services) :
          ["ECS/ContainerInsights", "MemoryUtilized", "ClusterName", var.cluster_name, "ServiceName", service]]
        },
        {
          title = "Database: processor (%) and connections"
          metrics = [
            ["AWS/RDS", "CPUUtilization", "DBInstanceIdentifier", var.database_identifier],
            ["AWS/RDS", "DatabaseConnections", "DBInstanceIdentifier", var.database_identifier],
          ]
        },
        {
          title   = "Database: free storage (bytes)"
          metrics = [["AWS/RDS", "FreeStorageSpace", "DBInstanceIdentifier", var.database_identifier]]
        },
        {
          title   = "Lambda: calls"
          metrics = [for name in var.function_names : ["AWS/Lambda", "Invocations", "FunctionName", name]]
        },
        {
          title   = "Lambda: longest call (ms)"
          metrics = [for name in var.function_names : ["AWS/Lambda", "Duration", "FunctionName", name, { stat = "Maximum" }]]
        },
        {
          title = "Glue: failed tasks"
          metrics = [for name in var.glue_job_names :
          ["Glue", "glue.driver.aggregate.numFailedTasks", "JobName", name, "JobRunId", "ALL", "Type", "count"]]
        },
        ] : {
        type   = "metric"
        x      = 12 * (position % 2)
        y      = 6 * floor(position / 2)
        width  = 12
        height = 6
        properties = {
          title   = graph.title
          region  = var.region
          view    = "timeSeries"
          stat    = "Average"
          period  = 300
          metrics = graph.metrics
        }
      }
    ]
  })
}
