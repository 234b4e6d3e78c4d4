# Private endpoints: with private DNS, the names that a profile declares resolve to addresses of this VPC.

resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.platform.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids = concat(
  [aws_route_table.private.id, aws_route_table.vpn.id], aws_route_table.out[*].id)
  policy = data.aws_iam_policy_document.s3_endpoint.json

  tags = { Name = "${var.name}-s3" }
}

# Who holds a key of another account inside this VPC carries nothing out with it: these buckets, and no other.
data "aws_iam_policy_document" "s3_endpoint" {
  statement {
    sid = "PlatformAndSources"
    actions = [
      "s3:GetObject", "s3:GetObjectVersion", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
      "s3:GetObjectRetention", "s3:PutObjectRetention", "s3:ListBucket", "s3:GetBucketLocation",
      "s3:GetBucketObjectLockConfiguration",
    ]
    resources = flatten([for arn in var.allowed_bucket_arns : [arn, "${arn}/*"]])

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }
  }

  # Layers of container images, and the agent's own downloads.
  statement {
    sid     = "ImagesAndAgents"
    actions = ["s3:GetObject"]
    resources = [
      "arn:aws:s3:::prod-${var.region}-starport-layer-bucket/*",
      "arn:aws:s3:::amazon-ssm-${var.region}/*",
      "arn:aws:s3:::al2023-repos-${var.region}-de612dc2/*",
    ]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }
  }
}

resource "aws_vpc_endpoint" "interface" {
  for_each = toset(local.interface_services)

  vpc_id              = aws_vpc.platform.id
  service_name        = "com.amazonaws.${var.region}.${each.value}"
  vpc_endpoint_type   = "Interface"
  private_dns_enabled = true
  subnet_ids          = [for name, subnet in local.of_tier.services : aws_subnet.platform[name].id]
  security_group_ids  = [aws_security_group.endpoints.id]

  tags = { Name = "${var.name}-${each.value}" }
}

# Other people's services behind PrivateLink: the warehouse of a tenant, a provider of data.
resource "aws_vpc_endpoint" "partner" {
  for_each = var.privatelink_services

  vpc_id              = aws_vpc.platform.id
  service_name        = each.value.service_name
  vpc_endpoint_type   = "Interface"
  private_dns_enabled = each.value.private_dns
  subnet_ids          = [for name, subnet in local.of_tier.services : aws_subnet.platform[name].id]
  security_group_ids  = [aws_security_group.partners.id]

  tags = { Name = "${var.name}-${each.key}" }
}
