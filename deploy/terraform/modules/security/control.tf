# The services: they start runners and end them, read and write the stores, sign evidence, and keep tenants' secrets.
# Ending is limited to what carries the platform's tags, starting to what Terraform made.

resource "aws_iam_role" "control" {
  name               = "${var.name}-control"
  description        = "Webserver, daemon, code location and action worker"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["ecs"].json
}

# Three policies, because one would be longer than AWS allows.
resource "aws_iam_policy" "control_runners" {
  name        = "${var.name}-control-runners"
  description = "Start, watch and end runners"
  policy      = data.aws_iam_policy_document.control_runners.json
}

resource "aws_iam_policy" "control_machines" {
  name        = "${var.name}-control-machines"
  description = "Start, command and end instances"
  policy      = data.aws_iam_policy_document.control_machines.json
}

resource "aws_iam_policy" "control_stores" {
  name        = "${var.name}-control-stores"
  description = "Stores, evidence and secrets"
  policy      = data.aws_iam_policy_document.control_stores.json
}

resource "aws_iam_role_policy_attachment" "control" {
  for_each = {
    runners  = aws_iam_policy.control_runners.arn
    machines = aws_iam_policy.control_machines.arn
    stores   = aws_iam_policy.control_stores.arn
  }

  role       = aws_iam_role.control.name
  policy_arn = each.value
}

data "aws_iam_policy_document" "control_runners" {
  # Lambda
  statement {
    sid       = "InvokeFunctions"
    actions   = ["lambda:InvokeFunction", "lambda:GetFunctionConfiguration", "lambda:ListTags"]
    resources = ["${local.arn}:lambda:${var.region}:${local.account}:function:${var.function_name}-*"]
  }

  # Fargate
  statement {
    sid       = "StartTasks"
    actions   = ["ecs:RunTask"]
    resources = ["${local.arn}:ecs:${var.region}:${local.account}:task-definition/${var.task_definition_name}:*"]

    condition {
      test     = "ArnEquals"
      variable = "ecs:cluster"
      values   = ["${local.arn}:ecs:${var.region}:${local.account}:cluster/${var.cluster_name}"]
    }
  }

  statement {
    sid       = "WatchAndEndTasks"
    actions   = ["ecs:DescribeTasks", "ecs:StopTask", "ecs:TagResource"]
    resources = ["${local.arn}:ecs:${var.region}:${local.account}:task/${var.cluster_name}/*"]
  }

  statement {
    sid       = "ReadTaskDefinitions" # take no resource
    actions   = ["ecs:DescribeTaskDefinition", "ecs:ListTasks"]
    resources = ["*"]
  }

  # Glue
  statement {
    sid     = "LookAtConnections"
    actions = ["glue:GetConnection"]
    resources = [
      "${local.arn}:glue:${var.region}:${local.account}:catalog",
      "${local.arn}:glue:${var.region}:${local.account}:connection/${var.name}-*",
    ]
  }

  statement {
    sid       = "RunTheJob"
    actions   = ["glue:StartJobRun", "glue:GetJobRun", "glue:GetJobRuns", "glue:GetJob", "glue:BatchStopJobRun", "glue:GetTags"]
    resources = ["${local.arn}:glue:${var.region}:${local.account}:job/${var.glue_job_name}-*"]
  }

  # Agents
  dynamic "statement" {
    for_each = length(var.agent_queues) > 0 ? [1] : []

    content {
      sid       = "GiveWorkToAgents"
      actions   = ["sqs:GetQueueUrl", "sqs:SendMessage"]
      resources = values(aws_sqs_queue.agent)[*].arn
    }
  }

  # Roles are handed only to the service that they are for.
  statement {
    sid     = "HandRolesToTasks"
    actions = ["iam:PassRole"]
    resources = concat(
      [for name, role in aws_iam_role.stage : role.arn if local.stage_roles[name].backend == "fargate"],
      [aws_iam_role.execution.arn],
    )

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ecs-tasks.amazonaws.com"]
    }
  }

  statement {
    sid     = "LastWords"
    actions = ["logs:GetLogEvents", "logs:FilterLogEvents"]
    resources = [
      "${local.log_groups}:*",
      "${local.arn}:logs:${var.region}:${local.account}:log-group:/aws-glue/*",
    ]
  }
}

data "aws_iam_policy_document" "control_machines" {
  # EC2: only from the launch template, only with the platform's tags
  statement {
    sid       = "StartInstances"
    actions   = ["ec2:RunInstances", "ec2:CreateFleet"]
    resources = ["${local.arn}:ec2:${var.region}:${local.account}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/product"
      values   = ["barecount"]
    }

    condition {
      test     = "Null"
      variable = "aws:RequestTag/run_token"
      values   = ["false"]
    }
  }

  statement {
    sid     = "StartInstancesWith"
    actions = ["ec2:RunInstances", "ec2:CreateFleet"]
    resources = [
      "${local.arn}:ec2:${var.region}::image/*",
      "${local.arn}:ec2:${var.region}:${local.account}:launch-template/*",
      "${local.arn}:ec2:${var.region}:${local.account}:network-interface/*",
      "${local.arn}:ec2:${var.region}:${local.account}:security-group/*",
      "${local.arn}:ec2:${var.region}:${local.account}:subnet/*",
      "${local.arn}:ec2:${var.region}:${local.account}:volume/*",
    ]
  }

  statement {
    sid     = "TagInstancesAsTheyStart"
    actions = ["ec2:CreateTags"]
    resources = [
      "${local.arn}:ec2:${var.region}:${local.account}:instance/*",
      "${local.arn}:ec2:${var.region}:${local.account}:network-interface/*",
      "${local.arn}:ec2:${var.region}:${local.account}:volume/*",
    ]

    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances", "CreateFleet"]
    }
  }

  statement {
    sid       = "EndInstances"
    actions   = ["ec2:TerminateInstances"]
    resources = ["${local.arn}:ec2:${var.region}:${local.account}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/product"
      values   = ["barecount"]
    }

    condition {
      test     = "Null"
      variable = "aws:ResourceTag/run_token"
      values   = ["false"]
    }
  }

  statement {
    sid = "LookAtNetworkAndInstances" # take no resource
    actions = [
      "ec2:DescribeInstances", "ec2:DescribeInstanceStatus", "ec2:DescribeLaunchTemplates",
      "ec2:DescribeLaunchTemplateVersions", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets",
      "ec2:DescribeVpcEndpoints",
    ]
    resources = ["*"]
  }

  statement {
    sid       = "ReadTheImageOfTheTemplate"
    actions   = ["ssm:GetParameters", "ssm:GetParameter"]
    resources = ["${local.arn}:ssm:${var.region}::parameter/aws/service/ecs/optimized-ami/*"]
  }

  statement {
    sid       = "CommandInstances"
    actions   = ["ssm:SendCommand"]
    resources = ["${local.arn}:ec2:${var.region}:${local.account}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "ssm:resourceTag/product"
      values   = ["barecount"]
    }
  }

  statement {
    sid       = "CommandWith"
    actions   = ["ssm:SendCommand"]
    resources = ["${local.arn}:ssm:${var.region}::document/AWS-RunShellScript"]
  }

  statement {
    sid = "WatchCommands" # take no resource
    actions = [
      "ssm:CancelCommand", "ssm:DescribeInstanceInformation", "ssm:GetCommandInvocation",
      "ssm:ListCommandInvocations", "ssm:ListCommands",
    ]
    resources = ["*"]
  }

  statement {
    sid       = "HandRolesToInstances"
    actions   = ["iam:PassRole"]
    resources = [for name, role in aws_iam_role.stage : role.arn if local.stage_roles[name].backend == "ec2"]

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "control_stores" {
  source_policy_documents = [
    for part in ["database", "raw_read", "raw_write", "sources", "keys"] : data.aws_iam_policy_document.part[part].json
  ]

  statement {
    sid       = "TalkToRunners"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    resources = [local.messages]
  }

  statement {
    sid       = "ListMessages"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn.runs]
  }

  # Retention hides an object; its bytes go when its lock has passed.
  statement {
    sid       = "ExpireRaw"
    actions   = ["s3:DeleteObject"]
    resources = [local.raw]
  }

  # Checkpoints are added and read; the bucket's lock keeps them.
  statement {
    sid       = "PlaceCheckpoints"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:GetObjectRetention", "s3:PutObjectRetention"]
    resources = [local.checkpoint]
  }

  statement {
    sid       = "ListCheckpoints"
    actions   = ["s3:ListBucket", "s3:GetBucketObjectLockConfiguration"]
    resources = [local.bucket_arn.evidence]
  }

  statement {
    sid = "KeepTenantSecrets"
    actions = [
      "secretsmanager:CreateSecret", "secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue",
      "secretsmanager:PutSecretValue", "secretsmanager:TagResource",
    ]
    resources = [local.secrets]
  }

  statement {
    sid       = "ListSecrets" # takes no resource
    actions   = ["secretsmanager:ListSecrets"]
    resources = ["*"]
  }

  # `aws ecs execute-command` and port forwarding to the UI; who may, the caller's own permissions say.
  statement {
    sid = "SessionsIntoServices"
    actions = [
      "ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel", "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ]
    resources = ["*"]
  }
}
