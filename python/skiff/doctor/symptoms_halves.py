"""Symptoms of the two halves of a run: whether they find each other, and what they save."""

from __future__ import annotations

from skiff.doctor.symptom import Symptom

SYMPTOMS = (
    Symptom(
        "unshared-folder",
        r"is not shared: node (\S+) has",
        "node \\1 sees another folder where the run's should be",
        "set run.folder to a file system that all nodes and the login node share",
    ),
    Symptom(
        "half-never-came",
        r"\d+ of \d+ nodes have appeared within",
        "the other half did not begin in time: its job waits in the queue, or has failed",
        'see `skiff status RUN`; mode = "het" lets both begin together; slurm.wait_seconds',
    ),
    Symptom(
        "half-gone",
        r"has not renewed its lease for",
        "the other half's node or job is gone",
        "its own log and Slurm's say why; the run goes on from its last checkpoint",
    ),
    Symptom(
        "killed",
        r"was killed by SIGKILL",
        "the trainer was killed from outside: by the kernel, when the memory was used up, or by"
        " somebody",
        "`dmesg` on the node tells of memory: raise slurm.trainer.memory; with slurm.requeues the"
        " run goes on by itself",
    ),
    Symptom(
        "server-unreachable",
        r"does not answer \S+ for [\d.]+ s",
        "the trainer's node cannot reach the runtime server",
        'runtime.host = "0.0.0.0", and ports between the partitions open; `curl URL/health` there',
    ),
    Symptom(
        "no-such-interface",
        r"has no IPv4 address on \S+; there are ",
        "the node has no network interface of the name in hardware.interface",
        "choose one that all nodes of the trainer have: `ip -brief address`",
    ),
    Symptom(
        "no-ray-ports",
        r"no \d+ ports in a row are free",
        "Ray finds no free ports on the node: processes of another job may be left there",
        "`ss -ltn` there; exclude the node, or ask for it whole (--exclusive)",
    ),
    Symptom(
        "worker-stuck",
        r"\d+ prompts have no result although",
        "an agent worker of the trainer is dead or stuck",
        "the verl log names it; the run goes on from its last checkpoint",
    ),
    Symptom(
        "checkpoint-damaged",
        r"the checkpoint of step (\d+) is not used: (.*)",
        "the checkpoint of step \\1 is damaged (\\2)",
        "the run went on from the one before; look at the disk of run.folder",
    ),
    Symptom(
        "gpu-idle",
        r"GPUs? .* idle for",
        "the GPUs wait: for rollouts, for sandboxes, or for a worker that hangs",
        "`skiff status RUN` counts sandboxes; more of them, faster images, fewer turns",
    ),
    Symptom(
        "gpu-nearly-full",
        r"GPU \d+ has used \d+ % of its memory",
        "a GPU's memory is nearly used up: the next longer batch may not fit",
        "lower rollout.response_tokens, hardware.micro_batch or hardware.gpu_memory_share",
    ),
    Symptom(
        "gpu-hot",
        r"GPU \d+ is at \d+ °C",
        "a GPU is so hot that it slows down",
        "tell the site which node; exclude it meanwhile",
    ),
    Symptom(
        "gpu-ecc",
        r"GPU \d+ counts \d+ uncorrected memory errors",
        "a GPU's memory is faulty",
        "exclude the node, and tell the site",
    ),
    Symptom(
        "not-synced",
        r"files could not be copied to",
        "the run folder could not be copied to run.sync_to",
        "the sentence names rsync's reason; the run itself is not touched by it",
    ),
)
