#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "freertos/FreeRTOS.h"
#include "freertos/queue.h"
#include "freertos/semphr.h"
#include "freertos/task.h"
#include "host_chip.h"

// A lock and the condition that something waits for under it.
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} gate_t;

static void gate_init(gate_t *g)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&g->mutex, NULL);
    pthread_cond_init(&g->changed, &attr);
    pthread_condattr_destroy(&attr);
}

static struct timespec deadline(TickType_t ticks)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t ns = (int64_t)ticks * 1000000 / host_speedup() + t.tv_nsec;
    t.tv_sec += ns / 1000000000;
    t.tv_nsec = ns % 1000000000;
    return t;
}

// Waits for a change. False when the time is up.
static bool gate_wait(gate_t *g, TickType_t ticks, const struct timespec *until)
{
    if (ticks == portMAX_DELAY) {
        return pthread_cond_wait(&g->changed, &g->mutex) == 0;
    }
    return ticks > 0 && pthread_cond_timedwait(&g->changed, &g->mutex, until) != ETIMEDOUT;
}

struct host_task {
    gate_t gate;
    uint32_t value;
    bool notified;
    void (*code)(void *);
    void *arg;
};

static _Thread_local TaskHandle_t self;

static void *run(void *arg)
{
    self = arg;
    self->code(self->arg);
    return NULL;
}

BaseType_t xTaskCreate(void (*code)(void *), const char *name, uint32_t stack, void *arg, UBaseType_t priority, TaskHandle_t *out)
{
    (void)name;
    (void)priority;
    TaskHandle_t t = calloc(1, sizeof *t);
    if (t == NULL) {
        return pdFALSE;
    }
    host_heap_take(stack);
    gate_init(&t->gate);
    t->code = code;
    t->arg = arg;
    if (out != NULL) {
        *out = t;   // the task may be the first to look at it
    }
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, t) != 0) {
        return pdFALSE;
    }
    pthread_detach(thread);
    return pdPASS;
}

BaseType_t xTaskNotify(TaskHandle_t t, uint32_t value, eNotifyAction action)
{
    pthread_mutex_lock(&t->gate.mutex);
    t->value = action == eSetBits ? t->value | value : action == eIncrement ? t->value + 1 : value;
    t->notified = true;
    pthread_cond_broadcast(&t->gate.changed);
    pthread_mutex_unlock(&t->gate.mutex);
    return pdPASS;
}

BaseType_t xTaskNotifyGive(TaskHandle_t t)
{
    return xTaskNotify(t, 0, eIncrement);
}

BaseType_t xTaskNotifyWait(uint32_t clear_first, uint32_t clear_after, uint32_t *value, TickType_t ticks)
{
    struct timespec until = deadline(ticks);
    pthread_mutex_lock(&self->gate.mutex);
    if (!self->notified) {
        self->value &= ~clear_first;
    }
    while (!self->notified && gate_wait(&self->gate, ticks, &until)) {
    }
    bool was = self->notified;
    if (value != NULL) {
        *value = self->value;
    }
    if (was) {
        self->value &= ~clear_after;
    }
    self->notified = false;
    pthread_mutex_unlock(&self->gate.mutex);
    return was ? pdTRUE : pdFALSE;
}

uint32_t ulTaskNotifyTake(BaseType_t clear, TickType_t ticks)
{
    struct timespec until = deadline(ticks);
    pthread_mutex_lock(&self->gate.mutex);
    while (self->value == 0 && gate_wait(&self->gate, ticks, &until)) {
    }
    uint32_t was = self->value;
    if (was > 0) {
        self->value = clear ? 0 : was - 1;
    }
    self->notified = false;
    pthread_mutex_unlock(&self->gate.mutex);
    return was;
}

UBaseType_t uxTaskGetStackHighWaterMark(TaskHandle_t t)
{
    (void)t;
    return 0;   // not measured here
}

void vTaskDelete(TaskHandle_t t)
{
    if (t != NULL) {
        abort();
    }
    pthread_exit(NULL);
}

void vTaskDelay(TickType_t ticks)
{
    struct timespec until = deadline(ticks);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
    }
}

// A semaphore is a queue of items without content, as in FreeRTOS.
struct host_queue {
    gate_t gate;
    unsigned length, size, head, count;
    unsigned char items[];
};

QueueHandle_t xQueueCreate(UBaseType_t length, UBaseType_t size)
{
    QueueHandle_t q = calloc(1, sizeof *q + (size_t)length * size);
    if (q != NULL) {
        gate_init(&q->gate);
        q->length = length;
        q->size = size;
    }
    return q;
}

BaseType_t xQueueSend(QueueHandle_t q, const void *item, TickType_t ticks)
{
    if (ticks != 0) {
        abort();
    }
    pthread_mutex_lock(&q->gate.mutex);
    bool room = q->count < q->length;
    if (room) {
        if (item != NULL) { // a semaphore's items have no size
            memcpy(q->items + (size_t)((q->head + q->count) % q->length) * q->size, item, q->size);
        }
        q->count++;
        pthread_cond_signal(&q->gate.changed);
    }
    pthread_mutex_unlock(&q->gate.mutex);
    return room ? pdTRUE : pdFALSE;
}

BaseType_t xQueueReceive(QueueHandle_t q, void *item, TickType_t ticks)
{
    struct timespec until = deadline(ticks);
    pthread_mutex_lock(&q->gate.mutex);
    while (q->count == 0 && gate_wait(&q->gate, ticks, &until)) {
    }
    bool there = q->count > 0;
    if (there) {
        if (item != NULL) {
            memcpy(item, q->items + (size_t)q->head * q->size, q->size);
        }
        q->head = (q->head + 1) % q->length;
        q->count--;
    }
    pthread_mutex_unlock(&q->gate.mutex);
    return there ? pdTRUE : pdFALSE;
}

SemaphoreHandle_t xSemaphoreCreateBinary(void)
{
    return xQueueCreate(1, 0);
}

SemaphoreHandle_t xSemaphoreCreateMutex(void)
{
    SemaphoreHandle_t s = xSemaphoreCreateBinary();
    if (s != NULL) {
        xSemaphoreGive(s);
    }
    return s;
}

BaseType_t xSemaphoreTake(SemaphoreHandle_t s, TickType_t ticks)
{
    return xQueueReceive(s, NULL, ticks);
}

BaseType_t xSemaphoreGive(SemaphoreHandle_t s)
{
    return xQueueSend(s, NULL, 0);
}
