"""Tasks of the Language Model Evaluation Harness (lm_eval), scored faster and from local files."""
