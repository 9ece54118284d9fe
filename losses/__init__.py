"""Loss functions: margins, quality partition, sharded softmax, proxy queue, contrastive loss. One loss per file."""
