"""Training: the LightningModule and LightningDataModule, and whole runs."""
