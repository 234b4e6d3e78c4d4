# What is declared for the platform, as names and sizes for Terraform. No provider: `terraform console` shows all of it.

locals {
  folder   = "${path.module}/../../../.."
  declared = yamldecode(file("${local.folder}/deploy/environments/aws-${var.environment}.yaml"))
  sizes    = yamldecode(file("${local.folder}/contracts/platform/runner_sizes.yaml")).spec.backends
  spec     = local.declared.spec
  # Work on a profile with a queue is done by an agent elsewhere: nothing of its network is made here.
  networks = { for profile, network in local.spec.networks : profile => network if try(network.queue, null) == null }

  # s3://barecount-dev-runs/messages: the bucket's name gives the others theirs, as names of buckets are one world.
  messages         = regex("^s3://(?P<bucket>[^/]+)/?(?P<prefix>.*)$", local.spec.messages)
  bucket_prefix    = trimsuffix(local.messages.bucket, "-runs")
  public_subnets   = toset(local.networks.public_vpc_egress.subnets)
  vpn_subnets      = toset(local.networks.vpn.subnets)
  declared_subnets = sort(distinct(flatten([for profile in local.networks : profile.subnets])))

  subnets = {
    for name in local.declared_subnets : name => {
      tier = (contains(local.public_subnets, name) ? "public" : contains(local.vpn_subnets, name) ? "vpn" : "private")
      zone = index(["a", "b", "c"], regex("-([abc])$", name)[0])
    }
  }

  # In the names of roles, functions and jobs.
  stages = ["ingestion", "calendar", "normalization", "kpi-build", "publish"]

  # AWS binds role, memory, time and network to a function, not to a call: a function per stage, size and network profile.
  functions = merge([
    for profile, network in local.networks : {
      for pair in setproduct(local.stages, keys(local.sizes.lambda)) :
      "${local.spec.classes.serverless.function}-${pair[0]}-${pair[1]}-${replace(profile, "_", "-")}" => {
        stage           = pair[0]
        memory_mb       = local.sizes.lambda[pair[1]].memory_mb
        timeout_seconds = local.sizes.lambda[pair[1]].timeout_seconds
        concurrency     = local.sizes.lambda[pair[1]].concurrency
        subnets         = network.subnets
        security_groups = network.security_groups
      }
    }
  ]...)

  # Role and connection belong to a job: a job per stage and network profile, a connection per network profile.
  glue_jobs = {
    for pair in setproduct(local.stages, keys(local.networks)) :
    "${local.spec.classes.managed_etl.job}-${pair[0]}-${replace(pair[1], "_", "-")}" => {
      stage   = pair[0]
      profile = pair[1]
    }
  }

  glue_networks = {
    for profile, network in local.networks : profile => {
      subnet          = network.subnets[0]
      security_groups = network.security_groups
    }
  }
}
