"""A small byte-level tokenizer with the control tokens of the default model, for tests of prompts."""

from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = ["the cat sat on the mat and the dog sat on the cat", "two plus three equals five . four minus one equals three ."] * 20


@lru_cache
def small_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                            special_tokens=["<|endoftext|>"], show_progress=False))
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<think>", "</think>", "\\boxed{")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


CHAT = ("{{ bos_token if bos_token else '' }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}")


def chat_tokenizer(template: str = CHAT) -> PreTrainedTokenizerFast:
    from copy import deepcopy

    tokenizer = deepcopy(small_tokenizer())
    tokenizer.chat_template = template
    return tokenizer
