"""All symptoms, those that cause others first: a full disk explains what a trainer says of it."""

from __future__ import annotations

from skiff.doctor import symptoms_cluster, symptoms_halves, symptoms_sandboxes, symptoms_training

SYMPTOMS = (
    *symptoms_cluster.SYMPTOMS,
    *symptoms_halves.SYMPTOMS,
    *symptoms_sandboxes.SYMPTOMS,
    *symptoms_training.SYMPTOMS,
)
