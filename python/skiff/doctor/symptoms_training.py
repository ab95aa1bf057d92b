"""Symptoms of the trainer: GPU and driver, compilers, Ray, verl, vLLM, Python packages, wandb."""

from __future__ import annotations

from skiff.doctor.symptom import Symptom

SYMPTOMS = (
    Symptom(
        "mig-uuid",
        r"invalid literal for int\(\) with base 10: '(?:MIG|GPU)-",
        "CUDA_VISIBLE_DEVICES names devices by UUID, as Slurm does for MIG slices, and an older"
        " vLLM wants numbers",
        "use the locked vLLM (make install), or number the devices: CUDA_VISIBLE_DEVICES=0,1",
    ),
    Symptom(
        "no-libcuda",
        r"libcuda\.so(?:\.1)? cannot (?:be )?found|cannot find -lcuda"
        r"|libcuda\.so\.1: cannot open shared object",
        "the NVIDIA driver's library libcuda is not to be found: no GPU node, or an image that was"
        " started without --nv",
        "check `nvidia-smi` on the node; `skiff` starts images with --nv when hardware.platform ="
        ' "cuda"',
    ),
    Symptom(
        "no-compiler",
        r"Failed to find C compiler|InvalidCxxCompiler"
        r"|Command '\['[^']*(?:gcc|g\+\+|clang|/cc)', .* returned non-zero exit status"
        r"|FileNotFoundError: .*'(?:gcc|g\+\+|cc)'",
        "a kernel could not be compiled on the node: no compiler, or one that does not fit",
        "run the trainer from its SIF, which brings gcc, headers and a libcuda to link with; else"
        " load a compiler module; docs/kernels.md",
    ),
    Symptom(
        "no-python-headers",
        r"fatal error: Python\.h: No such file",
        "Triton compiles against Python's headers, and this Python has none",
        "use an interpreter with headers (uv's or pyenv's, UV_PYTHON), or the trainer's SIF",
    ),
    Symptom(
        "compile-backend",
        r"BackendCompilerFailed",
        "torch.compile gave up on the engine's model; the cause stands above in the log, most often"
        " a missing compiler or header",
        "run the trainer from its SIF, or with a kernel pack that fits (docs/kernels.md)",
    ),
    Symptom(
        "no-driver",
        r"Found no NVIDIA driver on your system|No CUDA GPUs are available"
        r"|no CUDA-capable device is detected|Torch not compiled with CUDA enabled",
        "torch sees no GPU",
        "on the node: `nvidia-smi`; slurm.trainer.gres must ask for GPUs; `make install"
        ' PLATFORM=cuda`; without GPUs hardware.platform = "cpu"',
    ),
    Symptom(
        "old-driver",
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient"
        r"|forward compatibility was attempted on non supported HW",
        "the node's NVIDIA driver is older than the CUDA of the trainer",
        "another node or partition, or have the driver updated",
    ),
    Symptom(
        "gpu-memory",
        r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU ran out of memory",
        "lower rollout.response_tokens, hardware.micro_batch, hardware.gpu_memory_share, in that"
        " order; hardware.offload = true; a smaller model",
    ),
    Symptom(
        "engine-memory",
        r"Free memory on device .* is less than desired GPU memory utilization"
        r"|No available memory for the cache blocks"
        r"|KV cache .* larger than the available KV cache memory",
        "the engine's share of the GPU does not hold its model and one whole context",
        "raise hardware.gpu_memory_share, lower model.context_tokens, or offload the trainer",
    ),
    Symptom(
        "gpu-fault",
        r"\bXid\b|uncorrectable ECC|CUDA error: (?:an illegal memory access|unspecified launch"
        r"|device-side assert)|GPU has fallen off the bus",
        "the GPU reported a fault",
        "start on another node (exclude this one), and tell the site what the log says",
    ),
    Symptom(
        "cannot-import",
        r"ImportError: cannot import name '(\w+)' from '([\w.]+)'",
        "\\2 has no \\1: a package of another version, or a name that the module does not import",
        "make install brings the locked versions; in code of your own import it from where it is"
        " defined",
    ),
    Symptom(
        "no-module",
        r"ModuleNotFoundError: No module named '([\w.]+)'$",
        "the Python that runs has no \\1",
        "make install (PLATFORM=cuda on GPU nodes); start by `skiff`, not by another Python",
    ),
    Symptom(
        "plugins-not-loaded",
        r"Unknown platform 'cpu'|No package metadata was found for vllm"
        r"|Attempted to load weight .* into parameter torch\.Size\(\[0\]\)",
        "verl or vLLM did not load Skiff's plugins: the installation is not whole",
        "make install (PLATFORM=cpu)",
    ),
    Symptom(
        "trajectories-mismatch",
        r"num_trajectories` of \d+ but the provided value|received num trajectories per instance",
        "the number of trajectories of a prompt stands in two places and differs",
        "it stands once here: rollout.trajectories_per_prompt",
    ),
    Symptom(
        "unknown-setting",
        r"Could not override '(.+?)'",
        "this verl does not know the setting \\1",
        "make install brings the verl that the profile is for",
    ),
    Symptom(
        "ray-start",
        r"The current node timed out during startup|node_manager\.cc.*Check failed"
        r"|Failed to connect to GCS|GCS.*(?:timed out|timeout)|No node info found for head node",
        "Ray did not come up in time: the machine is overloaded, or its ports are closed",
        "start again on a node of its own (--exclusive), without nice",
    ),
    Symptom(
        "ray-worker-died",
        r"The actor is dead because its worker process has died|ActorDiedError|WorkerCrashedError",
        "a worker of Ray died; its own log or the kernel's says why",
        "look for memory (host-memory), a signal or a GPU fault among the findings",
    ),
    Symptom(
        "socket-path",
        r"AF_UNIX path (?:length cannot exceed|too long)|socket path.*exceed",
        "the folder of Ray's sockets has too long a path",
        "Skiff uses /tmp; do not set RAY_TMPDIR",
    ),
    Symptom(
        "uv-environment",
        r"Creating virtual environment at: |`VIRTUAL_ENV=\S+` does not match the project",
        "the driver was started by `uv run`, so each of Ray's workers makes its environment anew",
        "it goes on after 5 to 30 s; start by `skiff`, which turns that off",
        harmless=True,
    ),
    Symptom(
        "empty-metrics",
        r"expected a non-empty list of Tensors|zero-size array to reduction operation"
        r"|Expected reduction dim to be specified for input\.numel\(\) == 0"
        r"|mean of empty slice|Mean of empty slice",
        "a statistic of nothing: no trajectory of the step could be used",
        "see why trajectories are masked (skiff report RUN); code of your own must leave empty"
        " lists out",
    ),
    Symptom(
        "not-a-logger",
        r"object has no attribute '(?:warning|info|error|debug)'",
        "a tracker of metrics is used as if it were Python's logger",
        "use logging.getLogger in that module",
    ),
    Symptom(
        "model-missing",
        r"is no Hugging Face model folder|couldn't find (?:them|it) in the cached files"
        r"|LocalEntryNotFoundError|OfflineModeIsEnabled",
        "the model is not where the profile says, and nothing is fetched during a run",
        "download it to a folder that the nodes see, and name that in model.path",
    ),
    Symptom(
        "wandb-key",
        r"No API key configured|api_key not configured|wandb\.errors\.\S*AuthenticationError",
        "wandb has no key",
        "WANDB_API_KEY in the environment or in .env (mode 0600) where you submit; without one"
        " Skiff logs offline",
    ),
    Symptom(
        "too-many-masked",
        r"(?:\d+ of|all) \d+ trajectories failed for infrastructure reasons",
        "too many trajectories failed by our own machinery (train.max_masked_share)",
        "`skiff report RUN` counts the reasons; the first is usually the cause of the others",
    ),
    # What people take for a fault.
    Symptom(
        "flash-attention-dtype",
        r"Flash Attention (?:2(?:\.0)? )?(?:only supports|without specifying a torch dtype)",
        "the model is read in float32 before it is cast",
        "nothing",
        harmless=True,
    ),
    Symptom(
        "fsdp-deprecated",
        r"FSDP.*(?:deprecated|will be deprecated)|FutureWarning: .*(?:FSDP|state_dict_type)",
        "torch recommends a newer interface than verl uses",
        "nothing",
        harmless=True,
    ),
    Symptom(
        "ipv6",
        r"errno: 97 - Address family not supported|[Ss]ocket .*IPv6",
        "the node has no IPv6; IPv4 is used",
        "nothing",
        harmless=True,
    ),
    Symptom(
        "blocking-get",
        r"Using blocking ray\.get inside async actor",
        "advice of Ray to those who wrote the worker",
        "nothing",
        harmless=True,
    ),
    Symptom(
        "pydantic-field",
        r"(?:UnsupportedFieldAttributeWarning|PydanticDeprecated\w+|Field name \"\w+\" .* shadows)",
        "a library uses an older interface of pydantic",
        "nothing",
        harmless=True,
    ),
)
