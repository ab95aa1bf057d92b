"""A run folder -> what a person wants to know: a table, a transcript, one self-contained HTML file.

Floor 5: reads the files of a run folder and nothing else; knows no trainer, server or scheduler.
"""

from skiff.report.html import write_report
from skiff.report.summary import Summary, summarise
from skiff.report.table import summary_table
from skiff.report.transcript import show_trajectory

__all__ = ["Summary", "show_trajectory", "summarise", "summary_table", "write_report"]
