"""The sandbox server: OpenHands' remote-runtime protocol, carried out in containers from outside.

Nothing of ours is put into an image. `control_api` and `sandbox_api` speak the protocol,
`sandboxes` holds the state machine, `backend` is the small interface behind it and
`podman_backend` the one implementation.
"""
