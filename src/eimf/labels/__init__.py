"""ESIM: the explicit semantic interest module. Used before and during training only, never at inference."""
