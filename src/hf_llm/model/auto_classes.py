"""Make `model_type: hf_llm` known to transformers' Auto classes; `import hf_llm.model` is enough."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM, HfLlmForSequenceClassification, HfLlmModel

AutoConfig.register("hf_llm", HfLlmConfig)
AutoModel.register(HfLlmConfig, HfLlmModel)
AutoModelForCausalLM.register(HfLlmConfig, HfLlmForCausalLM)
AutoModelForSequenceClassification.register(HfLlmConfig, HfLlmForSequenceClassification)
