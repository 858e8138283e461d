"""The aligned model: three towers (ECG, text, vitals) into one space, and the loss that aligns them."""
