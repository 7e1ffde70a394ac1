"""Models of RMCL. Importing this package registers them with Transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    ViltProcessor,
)

from .configuration_rmcl import RMCLViltConfig
from .modeling_rmcl_vilt import RMCLViltModel
from .modeling_rmcl_vilt_heads import (
    RMCLViltForImageAndTextRetrieval,
    RMCLViltForImageAndTextRetrievalOutput,
    RMCLViltForImagesAndTextClassification,
    RMCLViltForMaskedLM,
    RMCLViltForQuestionAnswering,
)
from .modeling_rmcl_vilt_pretraining import RMCLViltForPreTraining, RMCLViltForPreTrainingOutput

__all__ = [
    "RMCLViltConfig",
    "RMCLViltForImageAndTextRetrieval",
    "RMCLViltForImageAndTextRetrievalOutput",
    "RMCLViltForImagesAndTextClassification",
    "RMCLViltForMaskedLM",
    "RMCLViltForPreTraining",
    "RMCLViltForPreTrainingOutput",
    "RMCLViltForQuestionAnswering",
    "RMCLViltModel",
]

AutoConfig.register(RMCLViltConfig.model_type, RMCLViltConfig, exist_ok=True)
AutoProcessor.register(RMCLViltConfig, ViltProcessor, exist_ok=True)
RMCLViltConfig.register_for_auto_class()
for _auto_class, _model_class in (
    (AutoModel, RMCLViltModel),
    (AutoModelForPreTraining, RMCLViltForPreTraining),
    (AutoModelForMaskedLM, RMCLViltForMaskedLM),
    (AutoModelForVisualQuestionAnswering, RMCLViltForQuestionAnswering),
    (AutoModelForSequenceClassification, RMCLViltForImagesAndTextClassification),
    (AutoModelForNextSentencePrediction, RMCLViltForImageAndTextRetrieval),
    (AutoModelForZeroShotImageClassification, RMCLViltForImageAndTextRetrieval),
):
    _auto_class.register(RMCLViltConfig, _model_class, exist_ok=True)
    _model_class.register_for_auto_class(_auto_class.__name__)
