"""Any dual encoder of transformers whose texts are known to be prepared rightly."""
