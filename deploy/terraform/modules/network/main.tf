# The VPC with the network profiles. Every profile is a security group and subnets; what a profile may reach is what its
# group lets out and its subnets have a route for. Only public_vpc_egress has a route to the internet.
#
#   public     public_vpc_egress: out through NAT, from addresses that others can put on a list. Not through the internet
#              gateway: functions and jobs have no public address of their own
#   private    private_vpc, privatelink: no route out of the VPC
#   vpn        vpn: a route to the other network, and none else
#   services   webserver, daemon, code location, action worker: out through NAT
#   data       the database: no route at all
#   edge       the NAT gateways

locals {
  zones = slice(data.aws_availability_zones.available.names, 0, var.zones)

  # Numbers of subnets never move when another is declared: tier and zone decide.
  offsets = { public = 0, private = 3, vpn = 6 }

  own_subnets = merge([
    for tier, offset in { services = 9, data = 12 } : {
      for zone in range(var.zones) : "${var.name}-${tier}-${["a", "b", "c"][zone]}" => {
        tier = tier, zone = zone, cidr = cidrsubnet(var.cidr, 4, offset + zone)
      }
    }
  ]...)

  edge_subnets = {
    for zone in range(var.zones) : "${var.name}-edge-${["a", "b", "c"][zone]}" => {
      tier = "edge", zone = zone, cidr = cidrsubnet(cidrsubnet(var.cidr, 4, 15), 4, zone)
    }
  }

  subnets = merge(local.own_subnets, local.edge_subnets, {
    for name, subnet in var.subnets : name => {
      tier = subnet.tier, zone = subnet.zone
      cidr = cidrsubnet(var.cidr, 4, local.offsets[subnet.tier] + subnet.zone)
    }
  })

  of_tier = {
    for tier in ["public", "private", "vpn", "services", "data", "edge"] :
    tier => { for name, subnet in local.subnets : name => subnet if subnet.tier == tier }
  }

  # Runners and services pull images, read secrets, write logs and take commands without leaving AWS's network.
  interface_services = distinct(concat(
    [for service in var.endpoint_services : service if service != "s3"],
    ["secretsmanager", "logs", "ecr.api", "ecr.dkr", "kms", "sts", "ssm", "ssmmessages", "ec2messages", "glue"],
  ))
}

data "aws_availability_zones" "available" {
  state = "available"
}

resource "aws_vpc" "platform" {
  cidr_block           = var.cidr
  enable_dns_support   = true
  enable_dns_hostnames = true

  tags = { Name = var.name }
}

# The default group lets nothing in or out: whoever forgets a group reaches nothing.
resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.platform.id

  tags = { Name = "${var.name}-closed" }
}

resource "aws_flow_log" "platform" {
  vpc_id                   = aws_vpc.platform.id
  traffic_type             = "ALL"
  log_destination          = var.flow_log_group_arn
  iam_role_arn             = var.flow_log_role_arn
  max_aggregation_interval = 600

  tags = { Name = var.name }
}

resource "aws_subnet" "platform" {
  for_each = local.subnets

  vpc_id                  = aws_vpc.platform.id
  cidr_block              = each.value.cidr
  availability_zone       = local.zones[each.value.zone]
  map_public_ip_on_launch = false

  tags = { Name = each.key, tier = each.value.tier }
}

resource "aws_internet_gateway" "platform" {
  vpc_id = aws_vpc.platform.id

  tags = { Name = var.name }
}

resource "aws_eip" "nat" {
  count = var.nat_gateways

  domain = "vpc"

  tags = { Name = "${var.name}-nat-${count.index}" }
}

resource "aws_nat_gateway" "out" {
  count = var.nat_gateways

  allocation_id = aws_eip.nat[count.index].id
  subnet_id     = aws_subnet.platform[sort(keys(local.of_tier.edge))[count.index]].id

  tags = { Name = "${var.name}-${count.index}" }

  depends_on = [aws_internet_gateway.platform]
}

# Routes

resource "aws_route_table" "edge" {
  vpc_id = aws_vpc.platform.id

  tags = { Name = "${var.name}-edge" }
}

resource "aws_route" "edge_out" {
  route_table_id         = aws_route_table.edge.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.platform.id
}

resource "aws_route_table" "private" {
  vpc_id = aws_vpc.platform.id

  tags = { Name = "${var.name}-private" }
}

resource "aws_route_table" "vpn" {
  vpc_id = aws_vpc.platform.id

  tags = { Name = "${var.name}-vpn" }
}

resource "aws_route_table" "data" {
  vpc_id = aws_vpc.platform.id

  tags = { Name = "${var.name}-data" }
}

resource "aws_route_table" "out" {
  count = var.zones

  vpc_id = aws_vpc.platform.id

  tags = { Name = "${var.name}-out-${count.index}" }
}

resource "aws_route" "out" {
  count = var.zones

  route_table_id         = aws_route_table.out[count.index].id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.out[count.index % var.nat_gateways].id
}

resource "aws_route_table_association" "platform" {
  for_each = local.subnets

  subnet_id = aws_subnet.platform[each.key].id
  route_table_id = {
    public   = aws_route_table.out[each.value.zone].id
    private  = aws_route_table.private.id
    vpn      = aws_route_table.vpn.id
    data     = aws_route_table.data.id
    services = aws_route_table.out[each.value.zone].id
    edge     = aws_route_table.edge.id
  }[each.value.tier]
}

# The other network, by VPN

resource "aws_vpn_gateway" "platform" {
  count = var.vpn == null ? 0 : 1

  vpc_id = aws_vpc.platform.id

  tags = { Name = var.name }
}

resource "aws_customer_gateway" "other" {
  count = var.vpn == null ? 0 : 1

  bgp_asn    = var.vpn.bgp_asn
  ip_address = var.vpn.gateway_address
  type       = "ipsec.1"

  tags = { Name = "${var.name}-other" }
}

resource "aws_vpn_connection" "other" {
  count = var.vpn == null ? 0 : 1

  vpn_gateway_id      = aws_vpn_gateway.platform[0].id
  customer_gateway_id = aws_customer_gateway.other[0].id
  type                = "ipsec.1"
  static_routes_only  = true

  tags = { Name = "${var.name}-other" }
}

resource "aws_vpn_connection_route" "other" {
  for_each = toset(var.vpn == null ? [] : var.vpn.cidrs)

  vpn_connection_id      = aws_vpn_connection.other[0].id
  destination_cidr_block = each.value
}

resource "aws_vpn_gateway_route_propagation" "vpn" {
  count = var.vpn == null ? 0 : 1

  vpn_gateway_id = aws_vpn_gateway.platform[0].id
  route_table_id = aws_route_table.vpn.id
}
