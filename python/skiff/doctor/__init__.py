"""What is wrong: before a run with this machine and cluster, after a run with what it left.

symptom, symptoms*  the known faults of a run, as rules on lines; `after` applies them
check               what one look says; `places`, `machine` and `cluster` look; `before` and `node`
                    choose what is looked at from where
show                both for a terminal

Looks and tells; changes nothing of a run.
"""
