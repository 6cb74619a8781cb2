"""A comparison as one HTML page that can be sent to somebody."""

from .page import check_html_file, write_html_report

__all__ = ["check_html_file", "write_html_report"]
