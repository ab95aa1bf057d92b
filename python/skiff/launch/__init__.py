"""Start a run and watch it. Knows neither verl nor podman."""
