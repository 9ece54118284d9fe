"""MXNet's RecordIO, without MXNet: format, index, reader and writer."""
