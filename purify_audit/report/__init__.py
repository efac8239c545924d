"""The report: its schema, comparison of reports, and how numbers are written."""
