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

  # AWS binds memory, time and network to a function, not to a call: a function per size and network profile.
  functions = merge([
    for profile, network in local.networks : {
      for size, limits in local.sizes.lambda :
      "${local.spec.classes.serverless.function}-${size}-${replace(profile, "_", "-")}" => {
        memory_mb       = limits.memory_mb
        timeout_seconds = limits.timeout_seconds
        concurrency     = limits.concurrency
        subnets         = network.subnets
        security_groups = network.security_groups
      }
    }
  ]...)

  # The connection that gives a job its network belongs to the job: a job per network profile. Profiles without a private
  # address of their own have none.
  glue_jobs = {
    for profile, network in local.networks :
    "${local.spec.classes.managed_etl.job}-${replace(profile, "_", "-")}" => {
      profile         = profile
      subnet          = network.subnets[0]
      security_groups = network.security_groups
      public          = network.public
    }
  }
}
