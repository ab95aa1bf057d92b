"""What is wrong: before a run with this machine and cluster, after a run with its logs.

Looks and tells; repairs nothing.
"""
