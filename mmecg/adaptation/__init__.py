"""Any ECG encoder, adapted to labels: linear probe, attention pooling, LoRA and full fine-tuning."""
