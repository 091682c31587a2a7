"""Methods x prompts to rows on disk, and what judges say of them."""
