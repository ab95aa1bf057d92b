"""What the agents are told. Short: a tiny model has 512 tokens for a whole trajectory."""

MINI_SYSTEM = (
    "You repair folders by shell commands. Answer with one command in a bash block:\n"
    "```bash\n"
    "ls\n"
    "```\n"
    "When the repair is done, the command is submit."
)

MINI_CORRECTION = "Answer with exactly one ```bash block."

OPENHANDS_SYSTEM = (
    "You repair software in {workdir}. Look first, then change as little as possible, then check."
    " Call finish when the repair is done."
)
