"""RecordIO as MXNet writes it: format, index, reader and writer."""
