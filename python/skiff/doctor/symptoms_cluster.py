"""Symptoms of Slurm, of nodes and their network, and of disks.

Slurm's own words about a job are given as a line `JobState=... Reason=... ExitCode=...`.
"""

from __future__ import annotations

from skiff.doctor.symptom import Symptom

SYMPTOMS = (
    Symptom(
        "too-many-jobs",
        r"(QOSMax(?:Submit)?Jobs?Per(?:User|Account)Limit|AssocMax(?:Submit)?Jobs?Limit)",
        "the site's limit on your jobs is reached (\\1); each half of a run counts as one",
        "cancel jobs that wait or are not needed (squeue --me; skiff cancel RUN), or use another"
        " qos",
    ),
    Symptom(
        "over-a-limit",
        r"Reason=(?!\w+Max\w*Job)((?:QOS|Assoc|MaxGRES|MaxCpu|MaxMem|MaxNode)\w+)",
        "the job asks for more than your account or qos may have at a time (\\1)",
        "ask for less in [slurm.runtime] or [slurm.trainer], or name another qos or account",
    ),
    Symptom(
        "too-long",
        r"PartitionTimeLimit|Requested time limit is invalid",
        "the time asked for is longer than the partition allows",
        "lower slurm.runtime.time and slurm.trainer.time; slurm.requeues lets a run go on",
    ),
    Symptom(
        "no-such-partition",
        r"[Ii]nvalid partition (?:specified: (\S+)|name specified)",
        "this cluster has no such partition",
        "`sinfo` lists them; set slurm.runtime.partition and slurm.trainer.partition",
    ),
    Symptom(
        "no-such-account",
        r"Invalid (?:account|qos|account or account/partition combination)"
        r"|Invalid qos specification|Reason=Invalid(?:Account|QOS)",
        "Slurm does not let you use that account or qos there",
        "`sacctmgr show assoc user=$USER` lists yours; set account and qos of that half",
    ),
    Symptom(
        "no-such-node",
        r"Requested node configuration is not available|Reason=(?:BadConstraints"
        r"|PartitionNodeLimit)|Invalid generic resource \(gres\) specification"
        r"|Invalid feature specification",
        "no node of the partition has what the job asks for",
        "compare cpus, memory, gres, constraint and nodes with `scontrol show node`",
    ),
    Symptom(
        "nodes-away",
        r"Reason=(ReqNodeNotAvail\S*|PartitionDown|PartitionInactive|NodeDown|Reservation\w*)",
        "the nodes that the job needs are not to be had (\\1)",
        "look at `sinfo -R`; another partition, or wait",
    ),
    Symptom(
        "waits-for-a-dead-job",
        r"DependencyNeverSatisfied",
        "the job waits for another one that will never begin",
        "skiff cancel RUN, then launch again",
    ),
    Symptom(
        "held",
        r"Reason=(JobHeld(?:User|Admin)|launch_failed_requeued_held)",
        "the job is held (\\1)",
        "`scontrol release JOBID` once the node's fault is known",
    ),
    Symptom(
        "time-limit",
        r"DUE TO TIME LIMIT|JobState=TIMEOUT",
        "the job met its time limit",
        "ask for more time, or set slurm.requeues and train.save_every so that it goes on",
    ),
    Symptom(
        "preempted",
        r"DUE TO PREEMPTION|JobState=PREEMPTED",
        "the job had to give way to another one",
        "`skiff resume RUN`; slurm.requeues lets it go on by itself",
    ),
    Symptom(
        "node-lost",
        r"DUE TO NODE FAILURE|Node failure on (\S+)|JobState=(?:NODE_FAIL|BOOT_FAIL)",
        "a node of the job failed",
        "`skiff resume RUN`; name the node in `exclude` when it fails again",
    ),
    Symptom(
        "cancelled",
        r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*",
        "somebody cancelled the job",
        "`skiff resume RUN` goes on from the last checkpoint",
    ),
    Symptom(
        "host-memory",
        r"oom[-_]kill event|Out [Oo]f [Mm]emory: Killed process|OOM Killed"
        r"|JobState=OUT_OF_MEMORY|ray\.exceptions\.OutOfMemoryError"
        r"|Memory cgroup out of memory",
        "the host's memory, or the job's share of it, is used up",
        "raise slurm.trainer.memory or slurm.runtime.memory; fewer sandboxes, or"
        " hardware.offload = false",
    ),
    Symptom(
        "disk-full",
        r"No space left on device|inline_container\.cc:\d+\] \. unexpected pos",
        "a disk is full: that of the run folder, of the sandboxes' store or /tmp",
        "`df -h` there; train.keep_checkpoints, another run.folder, SKIFF_PODMAN_ROOT or"
        " SKIFF_APPTAINER_ROOT",
    ),
    Symptom(
        "quota",
        r"Disk quota exceeded",
        "your quota of that file system is used up",
        "remove old runs and checkpoints, or set run.folder to a file system with room",
    ),
    Symptom(
        "stale-handle",
        r"Stale file handle|Transport endpoint is not connected",
        "a network file system lost a folder that was open",
        "start again; tell the site when it comes back",
    ),
    Symptom(
        "path-on-another-machine",
        r"Permission denied: '(/testbed[^']*|/workspace[^']*)'",
        "\\1 is a path in a sandbox, but it was opened on the trainer's node",
        "give tools a remote executor and the conversation a scratch folder of its own, as"
        " skiff.agents.openhands does",
    ),
    Symptom(
        "folder-not-writable",
        r"(?:PermissionError|OSError): \[Errno (?:13|30)\] .*: '(?!/testbed|/workspace)([^']+)'",
        "\\1 cannot be written or read by this job",
        "make the folder, and see to its rights on the node; inside an image only paths that the"
        " profile names are there (images.binds)",
    ),
    Symptom(
        "port-taken",
        r"[Aa]ddress already in use|port \d+ of \S+ is taken|EADDRINUSE",
        "another program has the port",
        "runtime.port = 0 takes a free one; else end the program that `ss -ltnp` names",
    ),
    Symptom(
        "wrong-key",
        r"X-API-Key is missing or wrong|401 Unauthorized|Invalid API key|the key is refused",
        "the runtime server refuses the key: it was started with another one",
        "SKIFF_RUNTIME_KEY_FILE must name RUN/rendezvous/key of the server's run",
    ),
    Symptom(
        "key-readable",
        r"others can read the key|holds secrets but is readable by others",
        "a file with a secret can be read by others",
        "chmod 600 the file",
    ),
    Symptom(
        "no-server",
        r"no runtime server (?:is named|appeared within|has published itself)"
        r"|SANDBOX_REMOTE_RUNTIME_API_URL",
        "the trainer was not told where the runtime server is: it did not start, or the variable"
        " with its URL did not reach the process",
        "see the runtime's log; attach by runtime.url, and let `skiff` start Ray: workers of a"
        " foreign cluster do not get our variables",
    ),
    Symptom(
        "proxy",
        r"(?:403 Forbidden|407 Proxy Authentication Required|ProxyError|Proxy Authentication)",
        "a proxy stands in between",
        "put the nodes' names into no_proxy, and unset http_proxy for what is local",
    ),
    Symptom(
        "no-fabric",
        r"No eligible providers were found|fi_getinfo.*(?:No data available|-61)"
        r"|OFI.*[Uu]nable to find|libfabric.*not found",
        "the network library looks for a fabric (EFA, InfiniBand) that this node does not have",
        'hardware.fabric = "tcp", and hardware.interface',
    ),
    Symptom(
        "collective-timeout",
        r"Watchdog caught collective operation timeout|ncclRemoteError|ncclSystemError"
        r"|DistNetworkError: |[Gg]loo.*(?:[Tt]imed out|[Tt]imeout|closed by peer)"
        r"|Connection closed by peer \[",
        "a rank of the trainer stopped answering: it died, or the network between them did",
        "look for the first error of another rank; hardware.interface names the network to use",
    ),
    Symptom(
        "docker",
        r"permission denied while trying to connect to the Docker daemon socket"
        r"|Cannot connect to the Docker daemon",
        "Docker is asked for, which ordinary users of a cluster may not use",
        'none of Skiff needs it: runtime.backend = "podman" or "apptainer"',
    ),
    Symptom(
        "no-name",
        r"Temporary failure in name resolution|Name or service not known",
        "a host name was not resolved",
        "compute nodes often reach nothing outside: keep models and data in folders, and let wandb"
        " log offline",
    ),
)
