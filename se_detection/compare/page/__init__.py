"""A comparison as one HTML page that can be sent to somebody."""

from .comparison_page import write_html_report

__all__ = ["write_html_report"]
