# Roles. A stage has one of its own on each backend: what it may is what the stage needs, and what the backend needs to run
# anything at all.

locals {
  # Who takes the role.
  backends = { fargate = "ecs", lambda = "lambda", glue = "glue", ec2 = "ec2" }

  stage_roles = {
    for pair in setproduct(keys(local.backends), var.stages) :
    "${pair[0]}-${pair[1]}" => { backend = pair[0], stage = pair[1] }
  }

  # What a backend asks of the role besides.
  backend_documents = {
    fargate = []
    lambda  = [data.aws_iam_policy_document.function.json]
    glue    = [data.aws_iam_policy_document.job.json]
    ec2     = [data.aws_iam_policy_document.instance.json]
  }
}

resource "aws_iam_role" "stage" {
  for_each = local.stage_roles

  name               = "${var.name}-${each.key}"
  description        = "The stage ${each.value.stage} on ${each.value.backend}"
  assume_role_policy = data.aws_iam_policy_document.assumed_by[local.backends[each.value.backend]].json
}

resource "aws_iam_role_policy" "stage" {
  for_each = local.stage_roles

  name   = "stage"
  role   = aws_iam_role.stage[each.key].id
  policy = data.aws_iam_policy_document.stage_role[each.key].json
}

data "aws_iam_policy_document" "stage_role" {
  for_each = local.stage_roles

  source_policy_documents = concat(
    [data.aws_iam_policy_document.stage[each.value.stage].json], local.backend_documents[each.value.backend],
  )
}

resource "aws_iam_instance_profile" "stage" {
  for_each = toset(var.stages)

  name = aws_iam_role.stage["ec2-${each.value}"].name
  role = aws_iam_role.stage["ec2-${each.value}"].name
}

# What starts containers: pulls the image, opens the log.

resource "aws_iam_role" "execution" {
  name               = "${var.name}-execution"
  description        = "Starts containers: image and logs"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["ecs"].json
}

resource "aws_iam_role_policy" "execution" {
  name   = "start"
  role   = aws_iam_role.execution.id
  policy = data.aws_iam_policy_document.start.json
}

data "aws_iam_policy_document" "start" {
  statement {
    sid       = "LogInToTheRegistry" # takes no resource
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }

  statement {
    sid       = "PullTheImage"
    actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = ["${local.arn}:ecr:${var.region}:${local.account}:repository/${var.repository_name}"]
  }

  statement {
    sid       = "WriteLogs"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"]
    resources = ["${local.log_groups}:*"]
  }
}

# Lambda

data "aws_iam_policy_document" "function" {
  source_policy_documents = [data.aws_iam_policy_document.network.json]

  statement {
    sid       = "WriteLogs"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${local.log_groups}:*"]
  }
}

# A function or a job inside a VPC has network interfaces made for it; AWS lets them not be named beforehand.
data "aws_iam_policy_document" "network" {
  statement {
    sid = "NetworkInterfaces"
    actions = [
      "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface", "ec2:DescribeNetworkInterfaces",
      "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets", "ec2:DescribeVpcs",
      "ec2:AssignPrivateIpAddresses", "ec2:UnassignPrivateIpAddresses",
    ]
    resources = ["*"]
  }
}

# Glue

data "aws_iam_policy_document" "job" {
  source_policy_documents = [data.aws_iam_policy_document.network.json]

  statement {
    sid       = "ScriptAndPackages"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn.runs}/code/*"]
  }

  statement {
    sid     = "ItsConnections"
    actions = ["glue:GetConnection", "glue:GetConnections", "glue:GetJob"]
    resources = [
      "${local.arn}:glue:${var.region}:${local.account}:catalog",
      "${local.arn}:glue:${var.region}:${local.account}:connection/${var.name}-*",
      "${local.arn}:glue:${var.region}:${local.account}:job/${var.glue_job_name}-*",
    ]
  }

  statement {
    sid       = "TagsOfNetworkInterfaces"
    actions   = ["ec2:CreateTags", "ec2:DeleteTags"]
    resources = ["${local.arn}:ec2:${var.region}:${local.account}:network-interface/*"]

    condition {
      test     = "ForAllValues:StringEquals"
      variable = "aws:TagKeys"
      values   = ["aws-glue-service-resource"]
    }
  }

  statement {
    sid     = "WriteLogs"
    actions = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"]
    resources = [
      "${local.arn}:logs:${var.region}:${local.account}:log-group:/aws-glue/*",
      "${local.log_groups}:*",
    ]
  }

  statement {
    sid       = "Metrics" # takes no resource
    actions   = ["cloudwatch:PutMetricData"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "cloudwatch:namespace"
      values   = ["Glue"]
    }
  }
}

# EC2

data "aws_iam_policy_document" "instance" {
  source_policy_documents = [data.aws_iam_policy_document.start.json]

  # What the SSM agent says and asks; these actions take no resource of ours.
  statement {
    sid = "TakeCommands"
    actions = [
      "ssm:UpdateInstanceInformation", "ssm:ListInstanceAssociations",
      "ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel", "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
      "ec2messages:AcknowledgeMessage", "ec2messages:DeleteMessage", "ec2messages:FailMessage",
      "ec2messages:GetEndpoint", "ec2messages:GetMessages", "ec2messages:SendReply",
    ]
    resources = ["*"]
  }
}

# VPC flow logs, and RDS's own measurements

resource "aws_iam_role" "flow_logs" {
  name               = "${var.name}-flow-logs"
  description        = "Writes the VPC's flow logs"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["flow_logs"].json
}

resource "aws_iam_role_policy" "flow_logs" {
  name   = "logs"
  role   = aws_iam_role.flow_logs.id
  policy = data.aws_iam_policy_document.flow_logs.json
}

data "aws_iam_policy_document" "flow_logs" {
  statement {
    actions = [
      "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogGroups", "logs:DescribeLogStreams",
    ]
    resources = ["${local.log_groups}:*"]
  }
}

resource "aws_iam_role" "monitoring" {
  name               = "${var.name}-database-monitoring"
  description        = "RDS's measurements of its own machine"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["monitoring"].json
}

resource "aws_iam_role_policy" "monitoring" {
  name   = "logs"
  role   = aws_iam_role.monitoring.id
  policy = data.aws_iam_policy_document.monitoring.json
}

data "aws_iam_policy_document" "monitoring" {
  statement {
    actions = [
      "logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:PutRetentionPolicy",
      "logs:DescribeLogStreams", "logs:GetLogEvents",
    ]
    resources = [
      "${local.arn}:logs:${var.region}:${local.account}:log-group:RDS*",
      "${local.arn}:logs:${var.region}:${local.account}:log-group:RDS*:log-stream:*",
    ]
  }
}
