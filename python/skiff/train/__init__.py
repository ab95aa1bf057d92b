"""Config -> verl's stock main_ppo with our plugins: platform, agent loop, sampler, checkpoints."""
