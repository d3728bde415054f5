"""From raw interactions to batches: sources -> sequences -> splits -> batch -> datamodule."""
