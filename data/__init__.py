"""Stories as batches of tokens: `load_data(config)` is the way in.

sources, hub     where stories come from
formats, readers what is in a file, and its texts
cleaning         one form for the stories of all sources
builtin_stories  our own, told from the texts in builtin/ by the language of plots
tokenizer        text to token ids; tokenizer_file: those of others, judged by what we rely on
token_cache      tokenised once, memory-mapped, verified
loading          all of this for a run
batches          which tokens step number n sees
whole_text       all tokens of a text that a model is measured on
"""

from data.loading import KEYWORDS, StoryData, load_data, mean_bytes_per_token

__all__ = ["KEYWORDS", "StoryData", "load_data", "mean_bytes_per_token"]
