#pragma once

#include "freertos/FreeRTOS.h"

typedef struct host_task *TaskHandle_t;
typedef enum { eNoAction, eSetBits, eIncrement, eSetValueWithOverwrite } eNotifyAction;

// The stack is counted against the heap of the chip; the thread has the system's.
BaseType_t xTaskCreate(void (*code)(void *), const char *name, uint32_t stack, void *arg, UBaseType_t priority, TaskHandle_t *out);
BaseType_t xTaskNotify(TaskHandle_t task, uint32_t value, eNotifyAction action);
BaseType_t xTaskNotifyGive(TaskHandle_t task);
BaseType_t xTaskNotifyWait(uint32_t clear_first, uint32_t clear_after, uint32_t *value, TickType_t ticks);
uint32_t ulTaskNotifyTake(BaseType_t clear, TickType_t ticks);
UBaseType_t uxTaskGetStackHighWaterMark(TaskHandle_t task);
void vTaskDelete(TaskHandle_t task);   // only of the caller: NULL
void vTaskDelay(TickType_t ticks);
