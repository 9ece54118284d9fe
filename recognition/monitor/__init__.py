"""What a run reports: progress, diagnostics, pictures, damaged records and skipped steps."""
