"""One trajectory: agent, sandbox and policy -> token ids, mask, log-probs, reward.

`run.run_trajectory` is the entry. Knows nothing of verl's trainer; of verl it uses the builders
that turn chat messages into token ids.
"""
