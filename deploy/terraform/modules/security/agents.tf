# Agents inside other people's networks: a queue for each such network profile, and what an agent may. Who an agent is (IAM
# Roles Anywhere, a user of its own) is decided where it stands: attach the policy there.

resource "aws_sqs_queue" "agent" {
  for_each = var.agent_queues

  name                       = each.value
  message_retention_seconds  = 3600 # a run waits for ten minutes; what is older is wanted by nobody
  visibility_timeout_seconds = 60
  receive_wait_time_seconds  = 20
  kms_master_key_id          = aws_kms_key.platform["data"].arn

  tags = { Name = each.value, network_profile = each.key }
}

resource "aws_sqs_queue_policy" "agent" {
  for_each = var.agent_queues

  queue_url = aws_sqs_queue.agent[each.key].url
  policy    = data.aws_iam_policy_document.queue[each.key].json
}

data "aws_iam_policy_document" "queue" {
  for_each = var.agent_queues

  statement {
    sid       = "OnlyEncryptedConnections"
    effect    = "Deny"
    actions   = ["sqs:SendMessage", "sqs:ReceiveMessage", "sqs:DeleteMessage"]
    resources = [aws_sqs_queue.agent[each.key].arn]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_iam_policy" "agent" {
  for_each = var.agent_queues

  name        = "${var.name}-agent-${replace(each.key, "_", "-")}"
  description = "An agent on the network profile ${each.key}"
  policy      = data.aws_iam_policy_document.agent[each.key].json
}

data "aws_iam_policy_document" "agent" {
  for_each = var.agent_queues

  source_policy_documents = [data.aws_iam_policy_document.any_stage.json]

  statement {
    sid       = "TakeWork"
    actions   = ["sqs:GetQueueUrl", "sqs:ReceiveMessage", "sqs:DeleteMessage"]
    resources = [aws_sqs_queue.agent[each.key].arn]
  }
}
