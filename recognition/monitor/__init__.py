"""What a run reports: progress, diagnostics, pictures, skipped records and skipped steps."""
