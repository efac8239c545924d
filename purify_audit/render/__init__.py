"""What becomes of a report and its judgement: pages and files for people, services and tools."""
